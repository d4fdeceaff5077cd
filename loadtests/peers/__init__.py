"""The applications that the service is compared with. Each answers `GET /` and `GET /counters/default`."""
