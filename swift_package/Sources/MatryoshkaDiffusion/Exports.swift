// An app imports MatryoshkaDiffusion alone.
@_exported import DiffusionCore
