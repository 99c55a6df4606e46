"""What the monitor records, computes, exposes and sends.

It contacts neither broker nor hosts: it is given a look. It may import `diagnosis` and `core`.
"""
