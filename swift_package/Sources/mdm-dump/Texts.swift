import DiffusionCore
import Foundation

/// Standard input: a JSON list of texts. Standard output: a JSON list of their results.
enum Texts {
  private struct Encoded: Encodable {
    let ids: [Int]
    let pieces: [String]
  }

  static func tokens(model: String) throws {
    let tokenizer = try UnigramTokenizer(model: read(model))
    try put(
      given().map { text in
        let tokens = tokenizer.encode(text)
        return Encoded(ids: tokens.map(\.id), pieces: tokens.map(\.piece))
      })
  }

  static func captions() throws {
    try put(given().map { [try Caption.spelled($0, lowercase: false), try Caption.spelled($0, lowercase: true)] })
  }

  static func given() throws -> [String] {
    try JSONDecoder().decode([String].self, from: FileHandle.standardInput.readToEnd() ?? Data())
  }

  static func put(_ value: some Encodable) throws {
    FileHandle.standardOutput.write(try JSONEncoder().encode(value))
  }
}
