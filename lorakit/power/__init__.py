"""Power: devices, counters, estimates, and the joules between two readings."""
