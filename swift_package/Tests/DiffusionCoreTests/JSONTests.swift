import DiffusionCore
import Testing

@Suite struct JSONTests {
  @Test func canonicalTextIsThatOfPython() throws {
    let text = #"{"b": [1, 2.50, -0.0, 1e5], "a": {"é": "\u00e9\n\"\\/", "B": null}, "A": true}"#
    let json = try JSON(parsing: Array(text.utf8))
    #expect(json.canonical == #"{"A":true,"a":{"B":null,"é":"é\n\"\\/"},"b":[1,2.50,-0.0,1e5]}"#)
  }

  @Test(arguments: [
    "", "{", "[1,]", "{\"a\":1,}", "{\"a\":1,\"a\":2}", "01", "1.", "NaN", "Infinity", "-", "\"\\ud800\"",
    "\"\\x\"", "\"a", "tru", "[1] 2", "\"\u{1}\"", "{1:2}", "[1 2]", "1e", "'a'",
    String(repeating: "[", count: 100_000),
  ])
  func otherTextIsRefused(text: String) {
    #expect(throws: MatryoshkaError.self) { try JSON(parsing: Array(text.utf8)) }
  }

  @Test func bytesThatAreNoTextAreRefused() {
    #expect(throws: MatryoshkaError.self) { try JSON(parsing: [0x22, 0xFF, 0x22]) }
  }
}
