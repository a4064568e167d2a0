"""The only code that reads clocks, allocators and gradients; it leaves samples, never conclusions."""
