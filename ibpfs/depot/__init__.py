"""Speaking IBP: wire codec, client, pool, the bundled server."""
