"""A stand-in for GLPI's REST API: the endpoints a printer check needs, over real HTTP, with faults
on demand.

**Source:** GLPI's `apirest.md` and `inc/api.class.php` (status codes, error codes, shape of a
search answer).
"""
