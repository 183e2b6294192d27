"""What a finished run is good for: the trained model opened again, asked, evaluated, merged and described."""

from __future__ import annotations
