import DiffusionCore

/// An app's own check of prompts. None ships with the package, because the app decides which prompts
/// are acceptable. A store that distributes the app may demand a filter.
public protocol PromptFilter: Sendable {
  /// The reason to refuse the prompt; nil to accept it.
  func refusal(of prompt: String) async -> String?
}

/// An app's own check of pictures. It sees every preview and every result before the app does, and of clips
/// every frame.
public protocol ImageFilter: Sendable {
  /// The reason to refuse the picture; nil to accept it.
  func refusal(of picture: Picture) async -> String?
}
