import DiffusionCore

/// An app's own check of prompts. None ships with the package: what is acceptable is the app's
/// decision, and a shop that distributes it may demand one.
public protocol PromptFilter: Sendable {
  /// Why the prompt is refused; nil lets it pass.
  func refusal(of prompt: String) async -> String?
}

/// An app's own check of pictures. It sees every preview and every result before the app does.
public protocol ImageFilter: Sendable {
  /// Why the picture is refused; nil lets it pass.
  func refusal(of picture: Picture) async -> String?
}
