import DiffusionCore
import Foundation
import TestBundle
import Testing

/// Versions 1 and 2 of the manifest's schema.
@Suite struct ManifestTests {
  private static let clips = #"{"frames":[4,1],"fps":8,"key_frame":0}"#
  private static let size = #"{"name":"wide","width":16,"height":8}"#
  private static let hash = String(repeating: "a", count: 64)
  private static let adapter = #"{"name":"ink","sha256":"\#(hash)"}"#

  /// The manifest of the small bundle with text, with one more member and the digest that fits.
  private func adding(_ member: String, schema: Int = 2, inText: Bool = false) throws -> [UInt8] {
    let small = try SmallBundle(.text)
    let place = inText ? #""lowercase":true"# : #""created":null"#
    let text = try small.manifest(replacing: [
      ("\"schema\":1", "\"schema\":\(schema)"), (place, "\(place),\(member)"),
    ])
    return Array(text.utf8)
  }

  private func refusal(of bytes: [UInt8]) -> String? {
    do {
      try Manifest(parsing: bytes).checkWiring()
      return nil
    } catch {
      return (error as? MatryoshkaError)?.errorDescription
    }
  }

  @Test func whatVersion1SaysHasTheUsualValues() throws {
    let manifest = try SmallBundle(.text).bundle.manifest
    #expect(manifest.format == .coreml && manifest.video == nil)
    #expect(manifest.sizes.isEmpty && manifest.adapters.isEmpty)
    #expect(manifest.text?.padding == .maxTokens && manifest.text?.nullPrompt == .end)
  }

  @Test func version2IsRead() throws {
    let padded = try SmallBundle(.padded(.space)).bundle.manifest
    #expect(padded.text?.padding == .longest && padded.text?.nullPrompt == .space)
    let clips = try Manifest(parsing: adding("\"video\":\(ManifestTests.clips)"))
    #expect(clips.video?.frames == [4, 1] && clips.video?.fps == 8 && clips.video?.keyFrame == 0)
    let sizes = try Manifest(parsing: adding("\"sizes\":[\(ManifestTests.size)]")).sizes
    #expect(sizes.map(\.name) == ["wide"] && sizes.map(\.width) == [16] && sizes.map(\.height) == [8])
    let adapters = try Manifest(parsing: adding("\"adapters\":[\(ManifestTests.adapter)]")).adapters
    #expect(adapters.map(\.name) == ["ink"] && adapters.map(\.sha256) == [ManifestTests.hash])
    #expect(try Manifest(parsing: adding(#""format":"coreml""#)).format == .coreml)
  }

  @Test(arguments: [
    (#""format":"coreai""#, "format", false), ("\"video\":\(clips)", "video", false),
    ("\"sizes\":[\(size)]", "sizes", false), ("\"adapters\":[\(adapter)]", "adapters", false),
    (#""padding":"longest""#, "text.padding", true), (#""null_prompt":"space""#, "text.null_prompt", true),
  ])
  func version1HasNoneOfTheYoungerFields(member: String, field: String, inText: Bool) throws {
    let old = try adding(member, schema: 1, inText: inText)
    #expect(refusal(of: old) == "manifest.json: \(field) is unknown.")
    // The twin: version 2 has it.
    #expect(try Manifest(parsing: adding(member, inText: inText)).digest.count == 64)
  }

  @Test(arguments: [
    ("\"sizes\":[\(size)]", "sizes is something that this version cannot run"),
    ("\"adapters\":[\(adapter)]", "adapters is something that this version cannot run"),
  ])
  func whatThisVersionCannotRunIsRefusedInOneSentence(member: String, reason: String) throws {
    let bytes = try adding(member)
    #expect(refusal(of: bytes) == "manifest.json: \(reason); update the package.")
    let small = try SmallBundle(.text)
    try Data(bytes).write(to: small.url.appending(path: "manifest.json"))
    let error = #expect(throws: MatryoshkaError.self) { try BundleFolder(url: small.url) }
    #expect(error?.code == "newer_bundle")
  }

  @Test(arguments: [
    (#""format":"onnx""#, "format is \"onnx\", expected one of coreml, coreai", false),
    (#""format":null"#, "format is not a text", false),
    (#""video":null"#, "video is not an object", false),
    (#""video":{"frames":[0],"fps":8,"key_frame":0}"#, "video.frames is 0, expected 1...256", false),
    (#""sizes":[]"#, "sizes has 0 entries, expected 1...10000", false),
    (#""adapters":[{"name":"a b","sha256":""}]"#, "adapters.0.name is not made of letters, digits and _", false),
    (#""padding":"max_tokens""#, "text.padding is \"max_tokens\", which is never written", true),
    (#""padding":"none""#, "text.padding is \"none\", expected one of max_tokens, longest", true),
    (#""null_prompt":"end""#, "text.null_prompt is \"end\", which is never written", true),
    (#""null_prompt":null"#, "text.null_prompt is not a text", true),
    (#""steps":1"#, "text.steps is unknown", true),
  ])
  func otherValuesAreRefused(member: String, reason: String, inText: Bool) throws {
    let said = try #require(refusal(of: adding(member, inText: inText)))
    #expect(said.hasPrefix("manifest.json: \(reason)"), "\(said)")
  }

  /// Sides are 8 and 4.
  @Test(arguments: [
    ("[4]", 0, "has 1 numbers of frames for 2 levels"),
    ("[4,4,1]", 0, "has 3 numbers of frames for 2 levels"),
    ("[8,1]", 0, "has 8 frames at 8 pixels, which do not fill a square"),
    ("[9,1]", 0, "has 9 frames at 8 pixels, which do not fill a square"),
    ("[1,4]", 0, "has more frames further in, got [1, 4]"),
    ("[4,1]", 4, "shows frame 4 of 4"),
  ])
  func clipsThatDoNotFitTheirLevelsAreRefused(frames: String, key: Int, reason: String) throws {
    let bytes = try adding(#""video":{"frames":\#(frames),"fps":8,"key_frame":\#(key)}"#)
    #expect(refusal(of: bytes) == "manifest.json: video \(reason).")
    #expect(refusal(of: try adding("\"video\":\(ManifestTests.clips)")) == nil)
  }

  @Test func framesOfALevelFillItsSide() throws {
    let clips = try SmallBundle(.clips).bundle.manifest
    #expect(clips.frameCounts == [4, 1] && clips.frameSides == [4, 4])
    let pictures = try SmallBundle().bundle.manifest
    #expect(pictures.frameCounts == [1, 1] && pictures.frameSides == [8, 4])
  }

  @Test func aBundleOfCoreAIIsRead() throws {
    let small = try SmallBundle(.text, format: .coreai)
    let manifest = small.bundle.manifest
    #expect(manifest.format == .coreai && manifest.target == "iOS27")
    #expect(manifest.packages.allSatisfy { $0.path == "\($0.name).aimodel" })
    let functions = try SmallBundle(.functions, format: .coreai).bundle.manifest
    #expect(functions.packages.map(functions.function(of:)) == ["stop_4", "stop_8"])
    #expect(manifest.packages.compactMap(manifest.function(of:)).isEmpty)
  }

  @Test func packagesOfAnotherFormatAreRefused() throws {
    let said = "manifest.json: packages lists encoder.mlpackage, but the format is coreai."
    #expect(refusal(of: try adding(#""format":"coreai""#)) == said)
    let small = try SmallBundle(.text, format: .coreai)
    let older = try small.manifest(replacing: [(#","format":"coreai""#, "")])
    #expect(
      refusal(of: Array(older.utf8))
        == "manifest.json: packages lists encoder.aimodel, but the format is coreml.")
    let other = try small.manifest(replacing: [(#""path":"encoder.aimodel""#, #""path":"encoder.onnx""#)])
    #expect(refusal(of: Array(other.utf8))?.contains("is not the name of an .mlpackage or .aimodel") == true)
  }

  /// Core AI does not compare it, so a bundle with another program would run without a word.
  @Test func aProgramThatIsNotTheOneOfItsHashIsRefused() throws {
    let small = try SmallBundle(.text, format: .coreai)
    let place = small.url.appending(path: "encoder.aimodel/main.hash")
    #expect(try BundleFolder(url: small.url).manifest.digest.count == 64)
    try Data(repeating: 7, count: 32).write(to: place)
    let error = #expect(throws: MatryoshkaError.self) { try BundleFolder(url: small.url) }
    #expect(
      error?.errorDescription
        == "encoder.aimodel/main.hash: is not the SHA-256 of its main.mlirb; copy the whole bundle again.")
  }

  @Test func laterVersionsAreRefused() throws {
    let bytes = try adding(#""padding":"longest""#, schema: 3, inText: true)
    #expect(
      refusal(of: bytes)
        == "manifest.json: schema is 3, but this version reads 1 and 2; update the package.")
  }

  /// It covers what is written, so a field of version 2 counts and an absent one does not.
  @Test func theDigestCoversTheYoungerFields() throws {
    let bytes = try adding(#""padding":"longest""#, inText: true)
    let text = String(decoding: bytes, as: UTF8.self)
    #expect(refusal(of: bytes) == nil)
    let altered = text.replacingOccurrences(of: #","padding":"longest""#, with: "")
    #expect(refusal(of: Array(altered.utf8))?.contains("digest does not match") == true)
  }

  /// A package that takes `text_seen` gets it only where the padding says so.
  @Test func whatIsSeenIsAnInputOnlyOfBundlesThatPadToTheLongest() throws {
    let small = try SmallBundle(.padded(.end))
    #expect(refusal(of: Array(try small.manifest(replacing: []).utf8)) == nil)
    let bytes = Array(try small.manifest(replacing: [(#","padding":"longest""#, "")]).utf8)
    #expect(refusal(of: bytes)?.contains("takes text_seen, which nothing before it provides") == true)
  }
}
