"""sniproxy: an SNI forward proxy for TLS egress."""

__version__ = "0.1.0"
