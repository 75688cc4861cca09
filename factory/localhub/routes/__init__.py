"""The addresses of the protocol, a module for each subject; each ends with its ROUTES."""
