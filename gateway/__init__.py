"""The process Entra talks to: SCIM ingress, status store, dispatcher, operator API."""
