"""Control pictures: what control networks see, from videos, pictures and poses (I2V-Adapter, section 4.5)."""
