"""Local servers that speak the protocols of hosted services, judged by the services' own SDKs."""
