import DiffusionCore
import Foundation
import Synchronization
import TestBundle
import Testing

@MainActor
@Suite struct VerifyTests {
  private func stamp() -> URL {
    FileManager.default.temporaryDirectory.appending(path: "stamp-\(UUID().uuidString)")
  }

  @Test func hashesAreCheckedAwayFromTheMainThread() async throws {
    let small = try SmallBundle()
    let stamp = stamp()
    defer { try? FileManager.default.removeItem(at: stamp) }
    let seen = Mutex<[(Int, Int, Bool)]>([])
    try await BundleFolder.verify(url: small.url, stamp: stamp) { done, total in
      seen.withLock { $0.append((done, total, Thread.isMainThread)) }
    }
    let calls = seen.withLock { $0 }
    #expect(calls.count == small.bundle.manifest.files.count)
    #expect(calls.last?.0 == calls.last?.1)
    #expect(calls.allSatisfy { !$0.2 })
    #expect(try Data(contentsOf: stamp) == Data(small.bundle.manifest.digest.utf8))
    // With the stamp, nothing is hashed again.
    try await BundleFolder.verify(url: small.url, stamp: stamp) { _, _ in Issue.record("hashed again") }
  }

  @Test func cancellingItWritesNoStamp() async throws {
    let small = try SmallBundle()
    let (place, stamp) = (small.url, stamp())
    let check = Task {
      withUnsafeCurrentTask { $0?.cancel() }
      try await BundleFolder.verify(url: place, stamp: stamp)
    }
    await #expect(throws: CancellationError.self) { try await check.value }
    #expect(!FileManager.default.fileExists(atPath: stamp.path))
  }

  @Test func aDamagedFileIsNamed() async throws {
    let small = try SmallBundle()
    let stamp = stamp()
    try Data([2]).write(to: small.url.appending(path: "core_4.mlpackage/model"))
    let error = await #expect(throws: MatryoshkaError.self) {
      try await BundleFolder.verify(url: small.url, stamp: stamp)
    }
    #expect(error?.errorDescription?.hasPrefix("core_4.mlpackage/model: ") == true)
  }
}
