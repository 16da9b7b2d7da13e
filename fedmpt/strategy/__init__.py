"""From the sum over clients to the next global state. Pure functions; the server's only use of client work."""
