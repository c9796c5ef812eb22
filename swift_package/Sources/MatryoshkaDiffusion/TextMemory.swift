import DiffusionCore
import Synchronization

/// What a pipeline keeps of texts from one picture to the next: the tokenizer, and the encoder's
/// answers to the last captions, so that another seed reads and encodes nothing again.
final class TextMemory: Sendable {
  /// A caption as the packages take it.
  struct Text: Sendable {
    /// Its tokens and their mask, and what the encoder made of them once it has run.
    var values: [String: Tensor]
    /// The number of its tokens, with those that are cut.
    let count: Int
    /// The end of the caption that the model does not read; nil if it reads everything.
    let ignored: String?
  }

  private struct State {
    var tokenizer: UnigramTokenizer?
    var encoded: [String: Text] = [:]
  }

  private let bundle: BundleFolder
  private let state = Mutex(State())

  init(_ bundle: BundleFolder) { self.bundle = bundle }

  /// The answer of the encoder that is remembered; nil if there is none.
  func encoded(_ caption: String) -> Text? { state.withLock { $0.encoded[caption] } }

  /// Remembers these answers and forgets all others.
  func remember(_ texts: [String: Text]) { state.withLock { $0.encoded = texts } }

  /// Forgets everything.
  func forget() { state.withLock { $0 = State() } }

  /// The tokens of a caption.
  func tokens(of caption: String, _ text: Manifest.Text) throws -> Text {
    let spelled = try Caption.spelled(caption, lowercase: text.lowercase)
    let found = try tokenizer(text).tokens(spelled, maximum: text.maxTokens)
    let (ids, rest) = (found.ids, found.ignored.map(\.piece).joined())
    let padding = [Float](repeating: 0, count: text.maxTokens - ids.count)
    let shape = [1, text.maxTokens]
    return Text(
      values: [
        FeatureName.tokenIDs: try Tensor(shape: shape, values: ids.map { Float($0) } + padding),
        FeatureName.textMask: try Tensor(shape: shape, values: ids.map { _ in 1 } + padding),
      ],
      count: ids.count + found.ignored.count, ignored: rest.isEmpty ? nil : rest)
  }

  /// A sentence for every caption that was cut.
  func remarks(on captions: Chain.Captions, _ text: Manifest.Text?) -> [String] {
    guard let text else { return [] }
    let named = [("prompt", captions.prompt)] + (captions.negative.map { [("negative prompt", $0)] } ?? [])
    return named.compactMap { name, caption in
      guard let found = encoded(caption), let ignored = found.ignored else { return nil }
      let rest = ignored.split(separator: "▁").joined(separator: " ")
      return "The \(name) has \(found.count) tokens, but the model reads \(text.maxTokens); "
        + "it ignores \"\(rest.prefix(200))\"."
    }
  }

  private func tokenizer(_ text: Manifest.Text) throws -> UnigramTokenizer {
    if let known = state.withLock({ $0.tokenizer }) { return known }
    guard text.encoder != nil, let read = try bundle.tokenizer() else {
      throw MatryoshkaError.invalidArgument(
        name: "features", reason: "this bundle has no text encoder; supply features made by mdm embed")
    }
    state.withLock { $0.tokenizer = read }
    return read
  }
}
