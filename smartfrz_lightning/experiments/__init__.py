"""Data modules, networks and a classifier that the configs use; a user's own do as well."""
