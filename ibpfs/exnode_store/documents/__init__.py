"""exNode documents: values, notations (LoRS' XML, UNIS' JSON), end-to-end functions. Pure; what is read is hostile."""
