"""The service managers: what each is asked about all services at once, and what its answer means.

It may import the other files of `hosts`.
"""
