"""The bundled depot: allocations as files, leases, capacity, and the sessions that serve them over IBP."""
