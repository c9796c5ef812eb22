import DiffusionCore
import Foundation

/// Prints values that the library reads from bundles.
enum Bundles {
  /// Bit patterns of the alpha_bar tables: the unshifted one, then each level's.
  static func tables(_ path: String, out: String) throws {
    let bundle = try BundleFolder(url: URL(filePath: path))
    let tables = [bundle.schedule.base] + bundle.schedule.tables
    let bytes = tables.joined().flatMap { value in
      (0..<8).map { UInt8(truncatingIfNeeded: value.bitPattern >> UInt64(8 * $0)) }
    }
    try write(bytes, to: out)
  }

  /// Standard input: a JSON list of manifests as texts. Output: for each, "" or the reason for refusal.
  static func manifests() throws {
    try Texts.put(
      Texts.given().map { text in
        do {
          let manifest = try Manifest(parsing: Array(text.utf8))
          try manifest.checkWiring()
          return ""
        } catch let error as MatryoshkaError {
          return error.errorDescription ?? "refused"
        }
      })
  }

  static func open(_ path: String) throws {
    let bundle = try BundleFolder(url: URL(filePath: path), checkingHashes: true)
    try Texts.put(["digest": bundle.manifest.digest])
  }

  /// Ids of the captions on standard input, as the bundle's model reads them.
  static func ids(_ path: String) throws {
    let bundle = try BundleFolder(url: URL(filePath: path))
    guard let text = bundle.manifest.text, let tokenizer = try bundle.tokenizer() else { return }
    try Texts.put(
      Texts.given().map { caption in
        let spelled = try Caption.spelled(caption, lowercase: text.lowercase)
        return tokenizer.tokens(spelled, maximum: text.maxTokens).ids
      })
  }

  /// Features of the captions on standard input, as a tensor file.
  static func features(_ bundlePath: String, _ cachePath: String, _ out: String) throws {
    let bundle = try BundleFolder(url: URL(filePath: bundlePath))
    guard let text = bundle.manifest.text else { return }
    let cache = try EmbeddingCache(
      url: URL(filePath: cachePath), text: text, encoderSHA256: bundle.encoderSHA256())
    var tensors: [(name: String, tensor: Tensor)] = []
    for (index, caption) in try Texts.given().enumerated() {
      let (values, mask) = try cache.features(of: caption)
      tensors += [("values_\(index)", values), ("mask_\(index)", mask)]
    }
    try write(TensorFile.contents(tensors), to: out)
  }
}
