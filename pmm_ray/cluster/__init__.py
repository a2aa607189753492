"""All that knows Ray: sessions, rows over actors (Ray Data), training (Ray Train), searching (Ray Tune)."""
