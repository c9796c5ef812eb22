import DiffusionCore
import Foundation

/// A bundle without text, of two levels, whose packages are files of one byte: enough for a runtime
/// that computes by itself.
package struct SmallBundle: ~Copyable {
  /// What is special about it.
  package enum Kind: Sendable, Equatable {
    /// Nothing: three packages.
    case nested
    /// Three packages of a model of clips: the outer level shows four frames of half its side at 8 a second,
    /// the inner one their key frame.
    case clips
    /// One package with a function per side.
    case functions
    /// Three packages of a student: starts 20, 15, 10, 5 of 20; weights 1 and 2.
    case student
    /// Five packages: a text encoder for four tokens of the letters a to f, and one that pools.
    case text
    /// The same for eight tokens, whose network sees the padding up to the longest caption.
    case padded(Manifest.NullPrompt)
  }

  package let url: URL
  package let bundle: BundleFolder

  /// - Parameters:
  ///   - side: of the outer level; the inner one has half of it.
  ///   - numSteps: length of the noise tables, less one.
  ///   - format: of the packages.
  ///   - weightBits: that its manifest says of every package.
  ///   - golden: the tensors of the golden record, whose only moment is the table index 1.
  package init(
    _ kind: Kind = .nested, side: Int = 8, numSteps: Int = 20, format: Manifest.Format = .coreml,
    weightBits: Int = 16, golden: [(name: String, tensor: Tensor)] = []
  ) throws {
    url = FileManager.default.temporaryDirectory.appending(path: "small-\(UUID().uuidString)")
    let recipe = Recipe(
      kind: kind, sides: [side, side / 2], numSteps: numSteps, format: format, weightBits: weightBits)
    var files: [(String, Data)] = [
      ("config.json", Data("{\"text\":null}".utf8)),
      ("golden.safetensors", TensorFile.contents(golden)),
      ("tables.safetensors", try recipe.tables()),
    ]
    if recipe.readsText { files.append(("tokenizer.model", Data(Recipe.tokenizer))) }
    for name in recipe.paths { files += recipe.files(of: name) }
    for (path, data) in files {
      let place = url.appending(path: path)
      try FileManager.default.createDirectory(
        at: place.deletingLastPathComponent(), withIntermediateDirectories: true)
      try data.write(to: place)
    }
    let text = try SmallBundle.stamped(recipe.manifest(files))
    try Data(text.utf8).write(to: url.appending(path: "manifest.json"))
    bundle = try BundleFolder(url: url, checkingHashes: true)
  }

  /// Its manifest with texts in place of others, and the digest that fits.
  package func manifest(replacing changes: [(String, String)]) throws -> String {
    var text = try String(contentsOf: url.appending(path: "manifest.json"), encoding: .utf8)
    let none = String(repeating: "0", count: 64)
    for (old, new) in [(bundle.manifest.digest, none)] + changes {
      text = text.replacingOccurrences(of: old, with: new)
    }
    return try SmallBundle.stamped(text)
  }

  /// A unigram model with these pieces.
  package static func tokenizer(_ pieces: [String]) -> [UInt8] { Recipe.tokenizer(pieces) }

  private static func stamped(_ text: String) throws -> String {
    let digest = Manifest.digest(of: try JSON(parsing: Array(text.utf8)))
    return text.replacingOccurrences(of: String(repeating: "0", count: 64), with: digest)
  }

  deinit { try? FileManager.default.removeItem(at: url) }
}
