"""Execute a plan on a host framework. Together with ``integrations``, the only room that imports DeepSpeed.

Everything is bound to one engine object and can be taken off again (``bindings.py``); DeepSpeed's own modules and
classes are never changed.
"""
