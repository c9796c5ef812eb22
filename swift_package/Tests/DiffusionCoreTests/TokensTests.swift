import DiffusionCore
import TestBundle
import Testing

/// Captions as a model reads them: their null prompt, their end and what is cut.
@Suite struct TokensTests {
  private static let pieces = ["▁", "a", "b"]  // their ids begin at 3

  private func tokenizer(_ nullPrompt: Manifest.NullPrompt) throws -> UnigramTokenizer {
    try UnigramTokenizer(model: SmallBundle.tokenizer(TokensTests.pieces), nullPrompt: nullPrompt)
  }

  @Test func theEmptyCaptionIsTheNullPrompt() throws {
    #expect(try tokenizer(.end).tokens("", maximum: 4).ids == [1])
    #expect(try tokenizer(.space).tokens("", maximum: 4).ids == [3, 1])
    #expect(try tokenizer(.space).tokens("", maximum: 1).ids == [1])
    #expect(try UnigramTokenizer(model: SmallBundle.tokenizer(["▁"])).tokens("", maximum: 4).ids == [1])
  }

  @Test(arguments: [Manifest.NullPrompt.end, .space])
  func otherCaptionsDoNotDependOnIt(nullPrompt: Manifest.NullPrompt) throws {
    let tokenizer = try tokenizer(nullPrompt)
    #expect(tokenizer.tokens("ab", maximum: 8).ids == [3, 4, 5, 1])
    #expect(tokenizer.encode("").isEmpty)
  }

  @Test func whatIsCutIsNamed() throws {
    let tokenizer = try tokenizer(.space)
    let whole = tokenizer.tokens("ab", maximum: 4)
    #expect(whole.ids == [3, 4, 5, 1] && whole.ignored.isEmpty)
    let cut = tokenizer.tokens("ab", maximum: 3)
    #expect(cut.ids == [3, 4, 1] && cut.ignored.map(\.piece) == ["b"])
    #expect(tokenizer.tokens("ab", maximum: 1).ids == [1])
  }

  @Test func aTokenizerWithoutASpaceIsRefusedWhereThatIsTheNullPrompt() throws {
    let model = SmallBundle.tokenizer(["a", "b"])
    #expect(try UnigramTokenizer(model: model).tokens("", maximum: 4).ids == [1])
    let error = #expect(throws: MatryoshkaError.self) {
      try UnigramTokenizer(model: model, nullPrompt: .space)
    }
    #expect(
      error?.errorDescription == "tokenizer: it has no piece for a space, which the model's null prompt is; "
        + "copy the tokenizer that came with the model.")
  }

  /// After cleaning: spaces and marks of direction are nothing.
  @Test(arguments: ["", "  ", "\t\n", "\u{200e}\u{feff} "])
  func aBundleGivesItsTokenizerItsNullPrompt(caption: String) throws {
    let spelled = try Caption.spelled(caption, lowercase: true)
    for (nullPrompt, ids) in [(Manifest.NullPrompt.space, [3, 1]), (.end, [1])] {
      let small = try SmallBundle(.padded(nullPrompt))
      let tokenizer = try #require(try small.bundle.tokenizer())
      #expect(tokenizer.tokens(spelled, maximum: 8).ids == ids)
    }
  }
}
