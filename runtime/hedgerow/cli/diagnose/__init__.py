"""Is this machine, broker or configuration fit?"""
