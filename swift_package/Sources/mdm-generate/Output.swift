import Foundation

/// Results on standard output, progress on standard error.
enum Output {
  static func put(_ report: (any Encodable)?, _ text: String) throws {
    var data = Data(text.utf8)
    if let report {
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
      data = try encoder.encode(report)
    }
    FileHandle.standardOutput.write(data + Data("\n".utf8))
  }

  static func say(_ text: String) {
    FileHandle.standardError.write(Data((text + "\n").utf8))
  }
}
