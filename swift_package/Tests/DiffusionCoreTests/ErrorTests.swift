import DiffusionCore
import Foundation
import Testing

@Suite struct ErrorTests {
  private static let all: [(MatryoshkaError, String, Int)] = [
    (.invalidJSON(offset: 1, reason: "x"), "invalid_json", 1),
    (.invalidManifest(field: "x", reason: "x"), "invalid_manifest", 2),
    (.damagedBundle(file: "x", reason: "x"), "damaged_bundle", 3),
    (.invalidTensorFile(reason: "x"), "invalid_tensor_file", 4),
    (.invalidTokenizer(reason: "x"), "invalid_tokenizer", 5),
    (.invalidPicture(reason: "x"), "invalid_picture", 6),
    (.invalidArgument(name: "x", reason: "x"), "invalid_argument", 7),
    (.missingFeatures(caption: "x"), "missing_features", 8),
    (.fileSystem(path: "x", reason: "x"), "file_system", 9),
    (.notEnoughMemory(needed: 2, available: 1), "not_enough_memory", 10),
    (.packageFailed(package: "x", reason: "x"), "package_failed", 11),
    (.serverFailed(reason: "x"), "server_failed", 12),
    (.busy, "busy", 13),
    (.promptRefused(reason: "x"), "prompt_refused", 14),
    (.pictureRefused(reason: "x"), "picture_refused", 15),
    (
      .interrupted(
        Snapshot(
          bundleDigest: "", request: PictureRequest(prompt: ""), stepsDone: 0, states: [], draws: 0,
          history: nil), reason: "x"), "interrupted", 16
    ),
    (.newerBundle(field: "x", reason: "x"), "newer_bundle", 17),
    (.selfTestFailed(reason: "x"), "self_test_failed", 18),
    (.wrongKind(reason: "x"), "wrong_kind", 19),
  ]

  /// An app keys its own texts by them, so none may ever change.
  @Test func codesAndNumbersStayAndEveryCaseSaysWhatMayHelp() {
    for (error, code, number) in ErrorTests.all {
      #expect(error.code == code)
      #expect((error as NSError).code == number)
      #expect((error as NSError).domain == "MatryoshkaError")
      #expect(error.errorDescription?.hasSuffix(".") == true)
      #expect(error.recoverySuggestion?.hasSuffix(".") == true)
      #expect(error.localizedDescription == error.errorDescription)
    }
  }

  private struct Plain: Error {
    let number = 7
  }

  @Test func aCauseIsSaidWithWhatLiesBelowIt() {
    let below = NSError(domain: "d", code: 1, userInfo: [NSLocalizedDescriptionKey: "No space left."])
    let above = NSError(
      domain: "d", code: 2,
      userInfo: [NSLocalizedDescriptionKey: "Cannot compile.", NSUnderlyingErrorKey: below])
    #expect(above.cause == "Cannot compile: No space left")
    #expect(Plain().cause == "Plain(number: 7)")
    #expect(MatryoshkaError.packageFailed(package: "a", reason: "b").cause == "package a: b")
  }

  @Test func aFileThatCannotBeReadSaysWhy() {
    let url = URL(filePath: "/no/such/bundle")
    let works: [() throws -> Void] = [
      { _ = try BundleFolder(url: url) }, { _ = try TensorFile(url: url) },
      { _ = try SHA256.hex(ofFile: url) },
    ]
    for work in works {
      let error = #expect(throws: MatryoshkaError.self) { try work() }
      #expect(error?.errorDescription?.contains("(The operation could not be completed. The file ") == true)
    }
  }
}
