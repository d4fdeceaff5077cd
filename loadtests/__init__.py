"""The load lab: what each choice of server, store and library costs, measured side by side."""
