"""The whole system as processes that are killed: what was acknowledged must hold afterwards."""
