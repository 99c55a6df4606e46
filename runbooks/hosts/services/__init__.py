"""The service managers, a file each: how to ask and control one, and how to parse its answers.

It may import the other files of `hosts`.
"""
