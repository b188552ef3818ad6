"""The classes a provider's author writes: resource, resident and weights style, all over one waist."""
