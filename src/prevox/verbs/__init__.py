"""What each verb does: settings in, parts built from the registries, handed to the engine.

The only place that knows methods and engine at once; no mathematics and no loop lives here.
"""
