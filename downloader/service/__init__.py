"""The service: watches any number of tasks, asks for each at the right time, and fetches it."""
