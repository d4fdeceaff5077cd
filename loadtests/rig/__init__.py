"""Real parts for the lab and for the tests: stores, the service, clients that keep every answer."""
