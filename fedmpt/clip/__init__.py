"""The one door to CLIP: frozen towers, prompt encoding and the bundled tiny backbone."""
