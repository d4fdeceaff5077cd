"""A load generator of the open model: requests come when they come, whatever became of those before."""
