import Foundation

/// Text features from `mdm embed`, for making pictures without a text encoder on the device.
///
/// The file holds `features` BF16 (rows, width) and, sorted by digest, `digests` U8 (n, 32),
/// `starts` I64 (n,), `lengths` I64 (n,). Only requested rows are read.
public struct EmbeddingCache: Sendable {
  private let file: TensorFile
  private let digests: [UInt8]
  private let starts: [Int]
  private let lengths: [Int]
  private let width: Int
  private let maxTokens: Int
  private let lowercase: Bool

  /// Opens a cache. Refuses a cache that was made with another encoder or tokenizer.
  ///
  /// - Parameters:
  ///   - text: the bundle's description of its text.
  ///   - encoderSHA256: the encoder's hash from the bundle's configuration; nil skips the comparison.
  public init(url: URL, text: Manifest.Text, encoderSHA256: String?) throws {
    try self.init(TensorFile(url: url), text, encoderSHA256)
  }

  package init(_ file: TensorFile, _ text: Manifest.Text, _ encoderSHA256: String?) throws {
    var expected = [
      "format": "mdm-text-features-1",
      "lowercase": String(text.lowercase),
      "max_tokens": String(text.maxTokens),
      "width": String(text.width),
    ]
    expected["tokenizer_sha256"] = text.tokenizerSHA256
    expected["encoder_sha256"] = encoderSHA256
    expected["null_prompt"] = text.nullPrompt.rawValue
    // Written only where it is not the end token alone.
    let found = ["null_prompt": Manifest.NullPrompt.end.rawValue].merging(file.metadata) { $1 }
    for (key, value) in expected where found[key] != value {
      throw MatryoshkaError.invalidTensorFile(
        reason: "the features were made with a \(key) that differs from the bundle's")
    }
    self.file = file
    (width, maxTokens, lowercase) = (text.width, text.maxTokens, text.lowercase)
    digests = try file.bytes("digests")
    starts = try file.integers("starts").map { Int($0) }
    lengths = try file.integers("lengths").map { Int($0) }
    guard let features = file.entries["features"], features.type == .BF16,
      features.shape.count == 2, features.shape[1] == width, !starts.isEmpty,
      lengths.count == starts.count, digests.count == 32 * starts.count,
      zip(starts, lengths).allSatisfy({
        $0 >= 0 && $1 >= 1 && $1 <= text.maxTokens && $0 <= features.shape[0] - $1
      })
    else { throw MatryoshkaError.invalidTensorFile(reason: "not a complete file of text features") }
  }

  /// The number of captions.
  public var count: Int { starts.count }

  /// The features (1, maxTokens, width), zero-padded after the text, and their mask (1, maxTokens).
  ///
  /// Throws ``MatryoshkaError/missingFeatures(caption:)``.
  public func features(of caption: String) throws -> (values: Tensor, mask: Tensor) {
    let spelled = try Caption.spelled(caption, lowercase: lowercase)
    guard let place = find(SHA256.digest(of: Array(spelled.utf8))) else {
      throw MatryoshkaError.missingFeatures(caption: caption)
    }
    let (start, length) = (starts[place], lengths[place])
    var values = try file.rows("features", start..<start + length)
    guard values.allSatisfy(\.isFinite) else {
      throw MatryoshkaError.invalidTensorFile(reason: "features that are not finite")
    }
    values += [Float](repeating: 0, count: (maxTokens - length) * width)
    let mask = (0..<maxTokens).map { Float($0 < length ? 1 : 0) }
    return (
      try Tensor(shape: [1, maxTokens, width], values: values),
      try Tensor(shape: [1, maxTokens], values: mask)
    )
  }

  private func find(_ digest: [UInt8]) -> Int? {
    var (low, high) = (0, count)
    while low < high {
      let middle = (low + high) / 2
      if digests[32 * middle..<32 * middle + 32].lexicographicallyPrecedes(digest) {
        low = middle + 1
      } else {
        high = middle
      }
    }
    return low < count && digests[32 * low..<32 * low + 32].elementsEqual(digest) ? low : nil
  }
}
