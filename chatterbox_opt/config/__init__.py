"""Settings as plain values: profiles, hardware facts, the resolved plan, model dimensions.

May import ``errors``, ``sampling`` and ``utils``; no torch.
"""
