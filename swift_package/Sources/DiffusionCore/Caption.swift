/// Prepares captions for the tokenizer.
package enum Caption {
  /// The longest caption that is accepted, in Unicode scalars.
  package static let maximumCharacters = 1 << 16

  private static let directions: Set<Unicode.Scalar> = [
    "\u{202a}", "\u{202b}", "\u{202c}", "\u{202d}", "\u{202e}", "\u{2066}", "\u{2067}", "\u{2068}",
    "\u{2069}", "\u{200e}", "\u{200f}", "\u{feff}",
  ]

  /// The caption as one trimmed line with single spaces. Control characters and line ends count as
  /// spaces, and direction overrides are dropped. Lower-cased on request, scalar by scalar.
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
