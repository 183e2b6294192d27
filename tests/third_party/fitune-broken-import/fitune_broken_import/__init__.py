"""For fitune's tests: a plugin that cannot be imported."""

raise RuntimeError("this plugin needs libnothing.so.7")
