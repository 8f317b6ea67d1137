"""The floor of the house: types, exact numerics, the meaning of the shared arguments, frames, compilation."""
