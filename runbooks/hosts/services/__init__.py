"""The service managers, a file each: how one is asked and told, and what its answers mean.

It may import the other files of `hosts`.
"""
