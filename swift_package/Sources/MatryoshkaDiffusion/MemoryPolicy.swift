import DiffusionCore
import Foundation

#if os(iOS) || os(tvOS) || os(visionOS)
  import os
#endif

/// Which packages stay loaded, and when.
public enum MemoryPolicy: String, CaseIterable, Sendable {
  /// The first of the other policies that fits into the available memory.
  case automatic
  /// All packages, also between pictures: fastest.
  case resident
  /// The packages of one phase: the text encoder is released before the denoiser is loaded.
  case staged
  /// One package at a time: slowest.
  case minimal

  /// The policy to use. Throws before anything is loaded if no allowed policy fits.
  ///
  /// - Parameter available: bytes; nil if unknown, and then every policy is accepted.
  package func resolved(_ peak: Manifest.PeakMemory, available: Int?) throws -> MemoryPolicy {
    guard let available else { return self == .automatic ? .resident : self }
    let needs: [(MemoryPolicy, Int)] = [
      (.resident, peak.resident), (.staged, peak.staged), (.minimal, peak.minimal),
    ]
    let allowed = needs.filter { self == .automatic || self == $0.0 }
    guard let fitting = allowed.first(where: { $0.1 <= available }) else {
      throw MatryoshkaError.notEnoughMemory(
        needed: allowed.map(\.1).min() ?? peak.minimal, available: available)
    }
    return fitting.0
  }

  /// What `os_proc_available_memory` says; nil for 0, which it says where no limit applies to the
  /// process: in the simulator, and for an iOS app on a Mac.
  package static func known(_ bytes: Int) -> Int? { bytes > 0 ? bytes : nil }

  /// Bytes that this process may still allocate; nil if the system does not say.
  public static func availableMemory() -> Int? {
    #if os(iOS) || os(tvOS) || os(visionOS)
      return known(os_proc_available_memory())
    #elseif os(Linux)
      guard let text = try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8),
        let line = text.split(separator: "\n").first(where: { $0.hasPrefix("MemAvailable:") }),
        let kilobytes = line.split(separator: " ").dropFirst().first.flatMap({ Int($0) })
      else { return nil }
      return kilobytes << 10
    #else
      // A Mac swaps instead of refusing, so half of its memory is left to other processes.
      return Int(ProcessInfo.processInfo.physicalMemory / 2)
    #endif
  }
}
