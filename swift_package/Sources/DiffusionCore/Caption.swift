/// Captions as they are tokenized.
package enum Caption {
  /// Captions with more characters (Unicode scalars) are refused.
  package static let maximumCharacters = 1 << 16

  private static let directions: Set<Unicode.Scalar> = [
    "\u{202a}", "\u{202b}", "\u{202c}", "\u{202d}", "\u{202e}", "\u{2066}", "\u{2067}", "\u{2068}",
    "\u{2069}", "\u{200e}", "\u{200f}", "\u{feff}",
  ]

  /// One line: control characters and line ends count as spaces, single spaces, trimmed; direction
  /// overrides are dropped. In lower case where asked, scalar by scalar.
  package static func spelled(_ caption: String, lowercase: Bool) throws -> String {
    guard caption.unicodeScalars.count <= maximumCharacters else {
      throw MatryoshkaError.invalidArgument(
        name: "prompt", reason: "expected at most \(maximumCharacters) characters")
    }
    var out = ""
    var pendingSpace = false
    for scalar in caption.unicodeScalars where !directions.contains(scalar) {
      if separates(scalar) {
        pendingSpace = !out.isEmpty
        continue
      }
      if pendingSpace { out.unicodeScalars.append(" ") }
      pendingSpace = false
      if lowercase {
        out.unicodeScalars.append(contentsOf: scalar.properties.lowercaseMapping.unicodeScalars)
      } else {
        out.unicodeScalars.append(scalar)
      }
    }
    return out
  }

  private static func separates(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .lineSeparator, .paragraphSeparator, .spaceSeparator: true
    default: false
    }
  }
}
