import DiffusionCore
import Foundation

/// `mdm-dump WHAT ...`: the library's outputs for given inputs, for comparison with Python.
@main
struct Dump {
  static func main() {
    do {
      try run(Array(CommandLine.arguments.dropFirst()))
    } catch {
      let message = (error as? MatryoshkaError)?.errorDescription ?? "\(error)"
      FileHandle.standardError.write(Data("mdm-dump: \(message)\n".utf8))
      exit(1)
    }
  }

  static func run(_ arguments: [String]) throws {
    var rest = Arguments(arguments)
    switch try rest.next("what") {
    case "tokens": try Texts.tokens(model: rest.next("model"))
    case "captions": try Texts.captions()
    case "normals":
      try Noise.normals(
        key: [rest.number("seed"), rest.number("level")], count: Int(rest.number("count")),
        out: rest.next("out"))
    case "tables": try Bundles.tables(rest.next("bundle"), out: rest.next("out"))
    case "manifests": try Bundles.manifests()
    case "bundle": try Bundles.open(rest.next("bundle"))
    case "ids": try Bundles.ids(rest.next("bundle"))
    case "features": try Bundles.features(rest.next("bundle"), rest.next("cache"), rest.next("out"))
    case "walk": try Walk.run(rest.next("case"), tables: rest.next("tables"), out: rest.next("out"))
    case "write-png":
      try Pictures.write(
        raw: rest.next("raw"), width: Int(rest.number("width")), out: rest.next("out"))
    case "fold":
      try Clips.fold(
        raw: rest.next("raw"), side: Int(rest.number("side")), canvas: rest.next("canvas"),
        back: rest.next("back"))
    case "write-apng":
      try Clips.write(
        raw: rest.next("raw"), side: Int(rest.number("side")), fps: Int(rest.number("fps")),
        out: rest.next("out"))
    case "read-png": try Pictures.read(rest.next("png"), out: rest.next("out"))
    case "fuzz": try Fuzz.run(&rest)
    case "bench": try Bench.run(&rest)
    case let other: throw MatryoshkaError.invalidArgument(name: "what", reason: "\(other) is unknown")
    }
  }
}

/// The words of the command line, taken one by one.
struct Arguments {
  private var words: ArraySlice<String>

  init(_ words: [String]) { self.words = words[...] }

  mutating func next(_ name: String) throws -> String {
    guard let word = words.popFirst() else {
      throw MatryoshkaError.invalidArgument(name: name, reason: "is missing")
    }
    return word
  }

  mutating func number(_ name: String) throws -> UInt32 {
    guard let number = UInt32(try next(name)) else {
      throw MatryoshkaError.invalidArgument(name: name, reason: "is not a whole number")
    }
    return number
  }

  mutating func all() -> [String] {
    defer { words = [] }
    return Array(words)
  }
}

/// The bytes of a file.
func read(_ path: String) throws -> [UInt8] { [UInt8](try Data(contentsOf: URL(filePath: path))) }

/// Writes bytes to a file.
func write(_ bytes: some Sequence<UInt8>, to path: String) throws {
  try Data(bytes).write(to: URL(filePath: path))
}
