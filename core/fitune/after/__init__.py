"""What a finished run is good for: the trained model opened again, asked, evaluated, merged and described."""
