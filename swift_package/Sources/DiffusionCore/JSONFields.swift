/// Takes the members of a JSON object one by one, and refuses missing, unknown or mistyped members
/// with their place.
package struct JSONFields {
  package let place: String
  private var members: [String: JSON]

  /// Throws ``MatryoshkaError/invalidManifest(field:reason:)`` if the value is not an object.
  package init(_ value: JSON, _ place: String) throws {
    guard case .object(let members) = value else {
      throw MatryoshkaError.invalidManifest(
        field: place.isEmpty ? "the whole" : place, reason: "is not an object")
    }
    self.place = place
    self.members = Dictionary(members.map { ($0.key, $0.value) }) { first, _ in first }
  }

  package func path(_ key: String) -> String { place.isEmpty ? key : "\(place).\(key)" }

  package func refusal(_ key: String, _ reason: String) -> MatryoshkaError {
    .invalidManifest(field: path(key), reason: reason)
  }

  /// Whether there is such a member that was not taken.
  package func has(_ key: String) -> Bool { members[key] != nil }

  package mutating func take(_ key: String) throws -> JSON {
    guard let value = members.removeValue(forKey: key) else { throw refusal(key, "is missing") }
    return value
  }

  /// Refuses members that were not taken.
  package func finish() throws {
    if let key = members.keys.min() { throw refusal(String(key.prefix(80)), "is unknown") }
  }

  package mutating func string(_ key: String, _ lengths: ClosedRange<Int>) throws -> String {
    try optionalString(key, lengths) ?? { throw refusal(key, "is not a text") }()
  }

  package mutating func optionalString(
    _ key: String, _ lengths: ClosedRange<Int>
  ) throws -> String? {
    switch try take(key) {
    case .null: return nil
    case .string(let text):
      guard lengths.contains(text.unicodeScalars.count) else {
        throw refusal(key, "has \(text.unicodeScalars.count) characters, expected \(lengths)")
      }
      return text
    default: throw refusal(key, "is not a text")
    }
  }

  package mutating func bool(_ key: String) throws -> Bool {
    guard case .bool(let value) = try take(key) else { throw refusal(key, "is not true or false") }
    return value
  }

  package mutating func integer(_ key: String, _ range: ClosedRange<Int>) throws -> Int {
    try JSONFields.integer(take(key), range, path(key))
  }

  package mutating func positiveNumber(_ key: String) throws -> Double {
    let range = Double.leastNonzeroMagnitude...Double.greatestFiniteMagnitude
    return try JSONFields.fraction(take(key), range, path(key))
  }

  package mutating func integers(
    _ key: String, _ counts: ClosedRange<Int>, _ range: ClosedRange<Int>
  ) throws -> [Int] {
    let place = path(key)
    return try array(key, counts).map { try JSONFields.integer($0, range, place) }
  }

  package mutating func array(_ key: String, _ counts: ClosedRange<Int>) throws -> [JSON] {
    guard case .array(let values) = try take(key) else { throw refusal(key, "is not a list") }
    guard counts.contains(values.count) else {
      throw refusal(key, "has \(values.count) entries, expected \(counts)")
    }
    return values
  }

  package mutating func choice<Choice: RawRepresentable & CaseIterable>(
    _ key: String, of _: Choice.Type = Choice.self
  ) throws -> Choice where Choice.RawValue == String {
    let text = try string(key, 0...4096)
    guard let choice = Choice(rawValue: text) else {
      let known = Choice.allCases.map(\.rawValue).joined(separator: ", ")
      throw refusal(key, "is \"\(text.prefix(40))\", expected one of \(known)")
    }
    return choice
  }

  /// A number that Python wrote as a float. Refuses 2, because Python writes 2.0.
  package static func fraction(
    _ value: JSON, _ range: ClosedRange<Double>, _ place: String
  ) throws -> Double {
    guard case .number(let text) = value, Int(text) == nil, let number = Double(text),
      range.contains(number)
    else {
      throw MatryoshkaError.invalidManifest(
        field: place, reason: "is not a fraction from \(range.lowerBound) to \(range.upperBound)")
    }
    return number
  }

  /// A whole number. Refuses 2.0, as the Python reader does.
  package static func integer(
    _ value: JSON, _ range: ClosedRange<Int>, _ place: String
  ) throws -> Int {
    guard case .number(let text) = value,
      let number = Int(text)
    else { throw MatryoshkaError.invalidManifest(field: place, reason: "is not a whole number") }
    guard range.contains(number) else {
      throw MatryoshkaError.invalidManifest(field: place, reason: "is \(number), expected \(range)")
    }
    return number
  }
}
