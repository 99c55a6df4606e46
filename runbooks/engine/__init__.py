"""The stages of a run: observe, plan, confirm, record, apply, verify, undo.

It may import `diagnosis` and everything `diagnosis` imports; the pages define the order.
"""
