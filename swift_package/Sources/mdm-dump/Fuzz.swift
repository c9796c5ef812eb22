import DiffusionCore
import DiffusionPipe
import Foundation
import SeededRandom

/// `fuzz KIND SEED COUNT FILE`: reads COUNT mutations of a file. Every refusal must be a
/// MatryoshkaError, and nothing may crash, hang or take unbounded memory.
enum Fuzz {
  static func run(_ arguments: inout Arguments) throws {
    let kind = try arguments.next("kind")
    let seed = try arguments.number("seed")
    let count = Int(try arguments.number("count"))
    let whole = try read(arguments.next("file"))
    let parse = try reader(kind)
    var mutation = Mutation(seed: seed)
    var refused = 0
    for _ in 0..<count {
      let bytes = mutation.of(whole)
      do {
        try parse(bytes)
      } catch is MatryoshkaError {
        refused += 1
      }
    }
    try Texts.put(["mutations": count, "refused": refused])
  }

  private static func reader(_ kind: String) throws -> ([UInt8]) throws -> Void {
    switch kind {
    case "manifest":
      return { bytes in
        // The digest would refuse nearly every mutation before any other check, so it is recomputed.
        let manifest = try Manifest(parsing: refitted(bytes))
        try manifest.checkWiring()
      }
    case "tokenizer":
      return { _ = try UnigramTokenizer(model: $0).encode("ﬁne  café 👩‍👩‍👧 \u{0}\u{200b}日本") }
    case "tensors":
      return { bytes in
        let file = try TensorFile(data: Data(bytes))
        for (name, entry) in file.entries where entry.type != .F64 { _ = try? file.tensor(name) }
        for (name, entry) in file.entries where entry.type == .F64 { _ = try file.doubles(name) }
      }
    case "frames":
      return { bytes in
        var reader = FrameReader(bytes)
        _ = try reader.tensor()
        try reader.finish()
      }
    case "png": return { _ = try Picture(png: resummed($0)) }
    default: throw MatryoshkaError.invalidArgument(name: "kind", reason: "\(kind) is unknown")
    }
  }

  private static func refitted(_ bytes: [UInt8]) -> [UInt8] {
    guard let document = try? JSON(parsing: bytes), case .object(let members) = document else {
      return bytes
    }
    let digest = Manifest.digest(of: document)
    let fitted = members.map { $0.key == "digest" ? JSON.Member("digest", .string(digest)) : $0 }
    return Array(JSON.object(fitted).canonical.utf8)
  }

  /// The file with valid checksums, so that the decoder behind them is reached.
  private static func resummed(_ bytes: [UInt8]) -> [UInt8] {
    var out = bytes
    var position = 8
    while position + 12 <= out.count {
      let length = out[position..<position + 4].reduce(0) { $0 << 8 | Int($1) }
      guard length <= out.count - position - 12 else { break }
      let sum = PNG.checksum(out[position + 4..<position + 8 + length])
      out.replaceSubrange(position + 8 + length..<position + 12 + length, with: bigEndian(sum))
      position += 12 + length
    }
    return out
  }
}

/// Random damage: bytes are changed, cut, repeated, moved, or replaced by special values.
struct Mutation {
  private var random: SplitMix

  init(seed: UInt32) { random = SplitMix(seed: UInt64(seed)) }

  mutating func of(_ whole: [UInt8]) -> [UInt8] {
    var bytes = whole
    for _ in 0..<Int.random(in: 1...4, using: &random) where !bytes.isEmpty {
      // Half of the damage falls on the start, where headers are.
      let reach = Bool.random(using: &random) ? min(bytes.count, 512) : bytes.count
      let place = Int.random(in: 0..<reach, using: &random)
      let length = min(Int.random(in: 1...64, using: &random), bytes.count - place)
      switch Int.random(in: 0..<7, using: &random) {
      case 0: bytes[place] = UInt8.random(in: 0...255, using: &random)
      case 1: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
      case 2: bytes.removeSubrange(place..<place + length)
      case 3: bytes.insert(contentsOf: bytes[place..<place + length], at: place)
      case 4: bytes.removeLast(bytes.count - place)
      case 5:
        let telling: [UInt8] = [0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x2D, 0x39, 0x5B, 0x7B]
        for i in place..<place + min(length, 8) { bytes[i] = telling.randomElement(using: &random) ?? 0 }
      default:
        let other = Int.random(in: 0...bytes.count - length, using: &random)
        bytes.replaceSubrange(place..<place + length, with: Array(bytes[other..<other + length]))
      }
    }
    return bytes
  }
}
